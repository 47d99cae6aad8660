package events

import (
	"slices"
	"strings"

	"github.com/eipnet/eipnet/internal/model"
)

// Codes of problems with the engine itself.
const (
	CodeEngineBroken      model.Code = "engine-broken"      // this release crashes with any remote driver
	CodeEngineUnsupported model.Code = "engine-unsupported" // nothing of eipnet can work with this engine
)

// Problems lists what is wrong with Docker at present, most recent connection
// or attempt. An unsupported engine is not followed: Up stays false. A broken
// one is, as networks of Docker's own drivers work; the driver has to refuse.
func (w *Watcher) Problems() []model.Problem {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := slices.Clone(w.engineProblems)
	if !w.up && !slices.ContainsFunc(out, unsupported) {
		text := "docker's API has not answered yet"
		if w.failure != nil {
			text = w.failure.Error()
		}
		out = append(out, model.Problem{
			Code:     model.CodeDockerAway,
			Severity: model.Failure,
			Subject:  w.host,
			Text:     text,
			Fix:      "start docker, or name its socket with --docker-host; pins in force stay as they are",
		})
	}
	return out
}

func unsupported(p model.Problem) bool { return p.Code == CodeEngineUnsupported }

// judge tells what is wrong with an engine.
func judge(id identity, host string) []model.Problem {
	var out []model.Problem
	add := func(code model.Code, text, fix string) {
		out = append(out, model.Problem{Code: code, Severity: model.Failure, Subject: host, Text: text, Fix: fix})
	}
	const rootful = "run eipnet beside a root daemon on the Linux host itself"
	if has(id.security, "name=rootless") {
		add(CodeEngineUnsupported, "this docker is rootless: its containers are in a network namespace of its own", rootful)
	}
	if has(id.security, "name=userns") {
		add(CodeEngineUnsupported, "this docker remaps user namespaces, where eipnet cannot reach into containers", "start dockerd without --userns-remap")
	}
	if strings.Contains(id.platform, "Docker Desktop") {
		add(CodeEngineUnsupported, "this is Docker Desktop: its containers are in a virtual machine", rootful)
	}
	if strings.Contains(id.platform, "Podman") {
		add(CodeEngineUnsupported, "this is Podman's socket, not Docker's", "name docker's socket with --docker-host")
	}
	if crashes(id) {
		add(CodeEngineBroken, "docker "+id.version+" crashes when a container of any network plugin stops", "update docker to 29.0.3 or later")
	}
	return out
}

// has looks for a security option, which may have more fields ("name=seccomp,profile=builtin").
func has(options []string, want string) bool {
	return slices.ContainsFunc(options, func(o string) bool {
		name, _, _ := strings.Cut(o, ",")
		return name == want
	})
}

// crashes knows the releases that unlock an unlocked mutex when an endpoint of
// a remote driver loses its gateway (moby PR 51558). Development builds call
// themselves 29.0.0 too, but have a later API.
func crashes(id identity) bool {
	version, _, _ := strings.Cut(id.version, "-")
	version, _, _ = strings.Cut(version, "+")
	return slices.Contains([]string{"29.0.0", "29.0.1", "29.0.2"}, version) && (id.api == "" || id.api == "1.52")
}
