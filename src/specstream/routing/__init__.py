"""Which drafter for this prompt: what a prompt looks like, what each drafter should be worth, and learning on."""
