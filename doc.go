// Package berth holds the terms in which berth runs container tasks: what a task, a step, an engine,
// a sandbox, a container, a device and an exit are, and what each promises.
//
// A task is what a user submits. Its steps are the containers that it runs one after another. An engine
// runs containers: this host, a daemon, or a cluster. For each task the engine opens a sandbox (volumes,
// devices, limits of the whole) and starts the steps in it.
//
// The package holds no behaviour beyond checking and naming: engines live in engine/..., the life of a
// task in package runner, and the wiring in internal/cli.
package berth
