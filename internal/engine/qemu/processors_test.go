package qemu

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"lodge/test/sandbox"
)

func TestProcessor(t *testing.T) {
	for chosen, want := range map[string]string{
		"max":            "max",
		"qemu64,+svm":    "qemu64,+svm",
		"x86-64-v2":      "qemu64,-svm,+cx16,+lahf-lm,+popcnt,+sse4.1,+sse4.2,+ssse3",
		"x86-64-v2,+svm": "qemu64,-svm,+cx16,+lahf-lm,+popcnt,+sse4.1,+sse4.2,+ssse3,+svm",
	} {
		if is := processor(chosen); is != want || !cpuModel.MatchString(is) {
			t.Errorf("%s is %s", chosen, is)
		}
	}
}

func TestTranslated(t *testing.T) {
	for model, want := range map[string]string{
		"max":             "max,-erms,-fsrm",
		"qemu64,+svm":     "qemu64,+svm,-erms,-fsrm",
		"max,+erms":       "max,+erms,-fsrm",
		"max,-fsrm,+erms": "max,-fsrm,+erms",
	} {
		if is := translated(model, []string{"erms", "fsrm"}); is != want || !cpuModel.MatchString(is) {
			t.Errorf("%s is %s", model, is)
		}
	}
}

func TestParseFeatures(t *testing.T) {
	help := "Available CPUs:\nx86 486\n\nRecognized CPUID flags:\n  3dnow abm\n  zero-fcs-fds\n"
	if is := parseFeatures([]byte(help)); !slices.Equal(is, []string{"3dnow", "abm", "zero-fcs-fds"}) {
		t.Errorf("%q", is)
	}
	if is := parseFeatures(nil); len(is) != 0 {
		t.Errorf("%q", is)
	}
}

// TestJudge asks the QEMU that is there.
func TestJudge(t *testing.T) {
	path, err := exec.LookPath(program)
	if err != nil {
		sandbox.Missing(t, program+" is not installed")
	}
	j, err := judge(t.Context(), path, "tcg", "max")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(j.baselines, "x86-64-v2") {
		t.Errorf("TCG gives guests %v", j.baselines)
	}
	if slices.Contains(j.lacking, "max") || !slices.Contains(j.lacking, "Icelake-Server") {
		t.Errorf("TCG lacks something of %v", j.lacking)
	}
	if is := j.fact([]string{"max", "Icelake-Server"}); !strings.Contains(is, "Icelake-Server") || strings.Contains(is, "max") {
		t.Errorf("%q", is)
	}
	t.Log(j.baselines, len(j.lacking))
	if _, err := judge(t.Context(), path, "no-such-accelerator", "max"); err == nil {
		t.Error("a QEMU that does not start judges")
	}
}
