"""Bridges to what a laboratory already has: archive manifests from RabbitMQ, imaging events from Redis streams.

Each runs until it is told to stop, and is an extra: ``pip install plateway[amqp]``, ``plateway[redis]``.
A message is acknowledged only when what it says is durable on our side; it may come again at any time.
"""
