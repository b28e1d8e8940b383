package placements

// Claim returns a slot that is kept for the guest with id, which has no record
// yet: it runs already, and waits for one. When it is placed, it gets that slot.
func (r *Reconciler) Claim(id string) (int, error) {
	slot, claimed, err := r.take(id)
	if err != nil || claimed {
		return slot, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claims[id] = slot
	return slot, nil
}

// Keep keeps the slot for id that an earlier daemon had claimed, unless it is a
// guest's by now.
func (r *Reconciler) Keep(id string, slot int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.used[slot] {
		r.used[slot] = true
		r.claims[id] = slot
	}
}

// Drop gives back the slot that is kept for id. Of a guest that was placed it is
// nothing: its slot goes with the guest.
func (r *Reconciler) Drop(id string) {
	r.mu.Lock()
	slot, claimed := r.claims[id]
	delete(r.claims, id)
	r.mu.Unlock()
	if claimed {
		r.give(slot)
	}
}

// placed says that the slot which was claimed for id, if one was, is its guest's
// from now on.
func (r *Reconciler) placed(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.claims, id)
}
