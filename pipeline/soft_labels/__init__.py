"""The teachers' answers to views that are drawn beforehand: made once, then used by any number of students."""
