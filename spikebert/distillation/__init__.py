"""Training of spiking students from BERT teachers: the teacher, the student made from it, and the stages."""
