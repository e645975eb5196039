"""One self-contained page: every fine-tune of a session with its verdicts, its causes and its charts."""
