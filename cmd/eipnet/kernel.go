package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// kernelProblem warns of the running kernel, if there is reason to.
func kernelProblem() []model.Problem {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil // an old kernel tells by what it refuses, too
	}
	return judgeKernel(unix.ByteSliceToString(u.Release[:]))
}

// judgeKernel warns of kernels before 5.2, the first with NAT in nftables'
// family inet. Some distributions' older ones have it all the same, so they are not refused.
func judgeKernel(release string) []model.Problem {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n < 2 || major > 5 || major == 5 && minor >= 2 {
		return nil
	}
	return []model.Problem{{
		Code: model.CodeKernelOld, Severity: model.Warning, Subject: "kernel " + release,
		Text: "it is older than 5.2, the first one with NAT for IPv4 and IPv6 in one nftables table",
		Fix:  "if apply-failed stands beside this, update the kernel; else all is well",
	}}
}
