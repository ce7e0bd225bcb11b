"""The report on segmented slides: HTML with pictures, tables and a summary in plain words.

- ``writing``: from segmented slides to the report's folder.
- ``layout``: what stands where; ``page`` writes the HTML; ``words`` says the findings in sentences.
"""

from renal_utils.reports.writing import write_report

__all__ = ["write_report"]
