"""The trainers, one readable file each, on a few shared parts.

They know no task and no disk: tensors in, tensors out.
"""
