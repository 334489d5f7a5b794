package signature

// Block is what no mark may cross the border of.
const Block = block

// Mark is a place of a mark, for tests.
type Mark struct {
	Offset      int64
	Kind, Magic string
}

// MarksOn are the marks that a disk of the size can have.
func MarksOn(size int64) []Mark {
	var marks []Mark
	for _, m := range marksOn(size) {
		marks = append(marks, Mark{m.offset, m.kind, m.magic})
	}
	return marks
}
