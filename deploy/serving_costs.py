"""What the router goes by: the cost model of each pool, from the configuration."""

from __future__ import annotations

import logging
from pathlib import Path

from deploy.replica import pool_of
from eastwest.config import Config
from eastwest.errors import ModelError
from eastwest.messages import WorkerInfo
from eastwest.ports import ServingCosts
from eastwest.types import Role
from planner.cost import CostModel
from planner.hardware import find_device
from planner.hf_config import read_model
from planner.serving import PlannedCosts, precision_of
from planner.stacks import find_stack

log = logging.getLogger(__name__)

_OWN_ENGINE = "eastwest"


def serving_costs(config: Config, model_dir: Path) -> ServingCosts | None:
    """None where the planner does not know the model's architecture: measured times alone decide
    then. Raises `ConfigError` for a device that is not known."""
    devices = {role: find_device(pool_of(config, role).device) for role in Role}
    try:
        shape = read_model(model_dir)
    except ModelError as error:
        log.warning("placement goes by measured times alone: %s", error.message)
        return None
    stack = find_stack(_OWN_ENGINE)

    def cost_of(worker: WorkerInfo) -> CostModel:
        precision = precision_of(worker.model, config.model.quantization)
        device = devices[worker.role]
        return CostModel(shape, worker.layout, precision, device, device.stack or stack)

    return PlannedCosts(cost_of)
