package static

var ParseSize = parseSize
