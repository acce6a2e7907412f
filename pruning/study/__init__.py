"""Studies: what is run, its data and networks, how it is trained, and the records that it leaves."""
