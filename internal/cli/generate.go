package cli

//go:generate sh -c "go run ../../cmd/berth docs > ../../docs/cli.md"
