"""A campaign as one HTML page: `page` puts it together, the other modules make its sections."""

from .page import write_page as write_page
