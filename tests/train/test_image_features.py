"""What a job makes of a schema's column of images."""

import pytest

from confide.data.schema import Image
from confide.errors import JobError
from confide.train.image_features import pixels_of
from confide.train.sections import ModelSection


@pytest.mark.parametrize(("stated", "ends"), [(None, (0.0, 1.0)), ((0.0, 1.0), (0.0, 1.0)), ((-1.0, 1.0), (-1.0, 1.0))])
def test_bare_pixels_take_the_range_of_the_schema(stated, ends):
    assert pixels_of(Image(name="scan", height=8, width=8, to=stated), ModelSection()).range == ends


def test_other_features_take_the_usual_range_alone():
    scattering = ModelSection(features="scattering")
    assert pixels_of(Image(name="scan", height=8, width=8, to=(0.0, 1.0)), scattering).scales
    with pytest.raises(JobError, match='leave "to" out'):
        pixels_of(Image(name="scan", height=8, width=8, to=(-1.0, 1.0)), scattering)
