package guest

import (
	"cmp"
	"slices"
	"time"
)

// orderGap lets guests of a lower order be first even when they ask for no
// delay.
const orderGap = 100 * time.Millisecond

// AutostartPlan says for each guest that comes back with its host how long
// after the host it may start: by order, then by name, each after the delays of
// those before it.
func AutostartPlan(lost []Guest) map[string]time.Duration {
	back := slices.DeleteFunc(slices.Clone(lost), func(g Guest) bool { return !g.returns() })
	slices.SortFunc(back, func(a, b Guest) int {
		return cmp.Or(cmp.Compare(a.Spec.Autostart.Order, b.Spec.Autostart.Order), cmp.Compare(a.Name, b.Name))
	})
	plan := make(map[string]time.Duration, len(back))
	var at time.Duration
	for i, g := range back {
		if i > 0 && back[i-1].Spec.Autostart.Order != g.Spec.Autostart.Order {
			at += orderGap
		}
		plan[g.ID] = at
		at += time.Duration(g.Spec.Autostart.Delay) * time.Second
	}
	return plan
}
