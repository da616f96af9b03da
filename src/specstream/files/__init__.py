"""Files that users write and this program keeps: settings, prompts, whole or not there."""
