"""The trainers, one readable file each, made of a few shared parts.

They know no task and no disk: tensors in, tensors out.
"""
