"""The report: table of all measurements, recommended file, HTML page, and deployment folder."""
