"""Energy of images under the teacher: scores, groups, temperatures, and the subset that HE-DA mixes."""
