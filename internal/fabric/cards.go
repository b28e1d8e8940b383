package fabric

// Prefix is what the names begin with of what the host's network consists of,
// unless the host's owner says otherwise.
const Prefix = "lodge"

// Cards is what the names begin with of the host's ends of guests' network
// cards, where the names of all else begin with prefix, of at most 5 characters.
// It leaves 9 for the rest, of 15 that the kernel takes. No two prefixes have the
// same, so that two daemons in one network namespace do not take each other's
// cards.
func Cards(prefix string) string {
	if prefix == Prefix {
		return "lg" // of guests that run through an upgrade
	}
	return prefix + "_"
}
