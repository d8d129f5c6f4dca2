// Package meter measures what lent devices do while a step has them: a process for each step, which reads their gauges
// each second and keeps sums in a file, until the step's first process has ended.
//
// It is a process of its own, so that a driver that hangs takes nothing else along, and so that the sums are complete
// whoever else is killed meanwhile. It knows no vendor: those make the gauges.
package meter
