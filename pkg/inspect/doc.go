// Package inspect finds out what there is on a node: pools, disks, volumes, who uses
// them, and the whole way of a volume from its medium to the container that has it.
//
// The plugin and rawblockctl use it alike: the plugin with its pools, the tool, where no
// plugin runs, with what the pools' media and directories tell (Look in the packages of the
// pools). What is returned is the same.
//
// Rules. It changes nothing. It is for someone who has trouble: what cannot be found
// out is told beside the rest (Errors) and hides none of it, and nobody waits long for a
// disk that does not answer. What it returns has JSON keys that stay as they are.
package inspect
