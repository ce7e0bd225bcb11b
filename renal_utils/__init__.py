"""Segment kidney tissue in whole-slide images: the library under the course's notebooks.

Modules stand on five floors and import only from the floors below (tests/test_floors.py holds
the table). Import the module you need; this file imports nothing, so that `import renal_utils`
stays instant.
"""

__version__ = "0.1.0"
