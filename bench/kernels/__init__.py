"""Time and memory of the losses: which sizes and providers are measured, the floors, profiling and tuning."""
