"""What stages hand to each other, and where: paths, files written whole, locks, room on the disk, tables, documents."""
