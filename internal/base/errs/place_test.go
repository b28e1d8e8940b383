package errs

import (
	"errors"
	"io"
	"testing"
)

func TestAboutAndAlone(t *testing.T) {
	one := Bad("name", "is wrong", "")
	joined := errors.Join(errors.Join(one, nil), nil)
	if Alone(joined) != error(one) || Alone(one) != error(one) || Alone(nil) != nil {
		t.Errorf("alone: %v", Alone(joined))
	}
	if two := errors.Join(one, io.EOF); Alone(two) != two {
		t.Errorf("two: %v", Alone(two))
	}
	if err := About(one, "guest/web1"); err.Error() != "guest/web1: name: is wrong" || one.Ref != "" {
		t.Errorf("about: %v", err)
	}
	if err := About(About(one, "guest/web1"), "guest/web2"); err.Error() != "guest/web1: name: is wrong" {
		t.Errorf("about another: %v", err)
	}
	if err := About(io.EOF, "guest/web1"); err != io.EOF {
		t.Errorf("about none of ours: %v", err)
	}
}
