"""Voice to voice: recorded utterances spoken to pipelines, measured on the waveform, by arm."""
