"""One thin program per DVC stage: read the parameters, call the pipeline, write the outputs, show progress."""
