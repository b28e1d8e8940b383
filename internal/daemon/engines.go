package daemon

import (
	"reflect"

	"lodge/api"
	"lodge/internal/engine"
)

// engineAPI describes an engine to a person.
func engineAPI(i engine.Info) api.Engine {
	return api.Engine{
		Name: i.Name, Model: string(i.Model), Version: i.Version, Usable: i.Missing == "", Missing: i.Missing, Hint: i.Hint,
		Can: abilities(i.Can),
	}
}

// abilities is the engine's abilities by the names they have in JSON, so that
// one that is added is shown without a word here.
func abilities(c engine.Can) map[string]bool {
	can, v := map[string]bool{}, reflect.ValueOf(c)
	for f, is := range v.Fields() {
		can[f.Tag.Get("json")] = is.Bool()
	}
	return can
}
