"""``capgate warm``: what a deployment will launch, compiled into Triton's cache beforehand."""
