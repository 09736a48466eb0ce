"""``megaclass bench infer``: latency and throughput by batch size, precision and engine, data included."""
