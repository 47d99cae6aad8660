package nsexec

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"
)

// User is whom a program runs as.
type User struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// ParseUser reads a name or number, with or without a group behind a colon.
// Without one, the user's own groups count; a number that is no user's has none.
func ParseUser(s string) (*User, error) {
	name, group, grouped := strings.Cut(s, ":")
	found, err := user.Lookup(name)
	if err != nil {
		found, err = user.LookupId(name)
	}
	var out User
	var unknown user.UnknownUserIdError
	switch {
	case errors.As(err, &unknown):
		found = &user.User{Uid: name, Gid: name}
	case err != nil:
		return nil, fmt.Errorf("there is no user %s: %w", name, err)
	case !grouped:
		groups, err := found.GroupIds()
		if err != nil {
			return nil, fmt.Errorf("reading the groups of %s: %w", name, err)
		}
		for _, g := range groups {
			n, err := id(g)
			if err != nil {
				return nil, err
			}
			out.Groups = append(out.Groups, n)
		}
	}
	if out.UID, err = id(found.Uid); err != nil {
		return nil, err
	}
	gid := found.Gid
	if grouped {
		gid = group
		if g, err := user.LookupGroup(group); err == nil {
			gid = g.Gid
		}
	}
	if out.GID, err = id(gid); err != nil {
		return nil, err
	}
	return &out, nil
}

func id(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("there is no user or group %s", s)
	}
	return uint32(n), nil
}
