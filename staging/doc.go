// Package staging brings a task's inputs to this host and its outputs to where their URLs say.
//
// Inputs that are on this host already are checked and left where they are, to be mounted read-only: no
// task gets at a user's files to change them, and nothing is copied. Others are fetched. Outputs are read
// through a View, the container's file tree as its steps saw it, which nothing leads out of.
//
// It mounts nothing and runs nothing.
package staging
