//go:build race

package device_test

// raced: the race detector makes everything several times slower.
const raced = true
