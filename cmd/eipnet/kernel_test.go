package main

import (
	"testing"

	"github.com/eipnet/eipnet/internal/model"
)

func TestJudgeKernel(t *testing.T) {
	for release, old := range map[string]bool{
		"4.18.0-553.el8.x86_64": true, "5.0.0": true, "5.1.21": true, "3.10.0-1160.el7.x86_64": true,
		"5.2.0": false, "5.15.0-91-generic": false, "6.18.1": false, "10.0": false, "": false, "strange": false,
	} {
		got := judgeKernel(release)
		if (len(got) > 0) != old {
			t.Errorf("%q: %v, want a warning: %v", release, got, old)
		}
		if old && got[0].Code != model.CodeKernelOld {
			t.Errorf("%q: %v", release, got)
		}
	}
	if got := kernelProblem(); len(got) > 0 {
		t.Errorf("this kernel, which the tests run on: %v", got)
	}
}
