"""What both kinds of benchmarks use: the machine and its limits, measuring, records, tables, goals and pictures."""
