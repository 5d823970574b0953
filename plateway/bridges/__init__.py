"""Bridges to message brokers: archive manifests from RabbitMQ, imaging events from Redis streams.

Each runs until it is stopped, and is an extra: ``pip install plateway[amqp]``, ``plateway[redis]``.
A message is acknowledged only after its content is stored durably; it may be delivered again at any time.
"""
