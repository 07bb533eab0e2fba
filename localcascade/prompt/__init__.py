"""What a model reads and writes: template in, thinking and tool calls out. Pure, no I/O."""
