"""Other people's training loops: one file a framework, each says when training begins, computes a loss, and ends."""
