// Package wire is what the host and the agent in a guest say to each other, over
// two serial lines, in the encoding of gob: on one commands and their answers, on
// the other, from within, machine.Request and machine.Reply.
package wire

// The names of the lines.
const (
	CommandPort = "rawblock.commands"
	MachinePort = "rawblock.machine"
)

// Command is something that the guest is to do: run a program, or store a file.
type Command struct {
	// Args are a program and its arguments; Environment is added to its
	// environment, and Dir is where it starts.
	Args        []string
	Environment []string
	Dir         string

	// File is the file that Data is added to; it Begins with it.
	File   string
	Data   []byte
	Begins bool
}

// Answer is a part of the output, or how the command ended.
type Answer struct {
	Output []byte
	// Done ends the answers to a command.
	Done bool
	// Status is empty where all went well.
	Status string
}
