package storage

// SafeName reports whether s may be the name of a volume or pool on disk: 1 to
// 64 letters, digits, "-", "_" and ".", not starting with a "." or "-".
func SafeName(s string) bool {
	if len(s) == 0 || len(s) > 64 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
		if !ok {
			return false
		}
	}
	return true
}
