"What people write with, for notebooks: `from cinic_fastai.all import *`; everything else is imported from its module"
# Images: a folder, checked, decoded once
from cinic_fastai.data.sources import write_demo, get_cinic, Drawing
from cinic_fastai.data.layout import find_images, check_folder, split_folder
from cinic_fastai.data.pack import get_pack, Pack

# One training: its settings, an ordinary Learner, a stored run
from cinic_fastai.config import RunConfig, make_config, run_id
from cinic_fastai.train.models import make_model
from cinic_fastai.train.learner import make_dls, make_learner
from cinic_fastai.train.fit import fit_run, FitOptions
from cinic_fastai.store import RunStore

# Augmentation, here or in any Learner
from cinic_fastai.data.augment import image_policy, register_policy, augmentation
from cinic_fastai.data.mix import Mix, mix_pair, cutmix_pair

# Networks and optimisers, here or in any Learner
from cinic_fastai.train.networks import CustomCNN, SpeedNet
from cinic_fastai.train.optim import opt_func, FusedSGD, FusedAdam
from cinic_fastai.data.loaders import pick_device

# Arrays to numbers, and how sure they are
from cinic_fastai.results.metrics import (
    balanced_accuracy, macro_f1, nll, ece, reliability, confusion, interval, mean_interval, mcnemar,
    bootstrap_difference, welch, disagreement)

# Votes
from cinic_fastai.results.ensemble import (
    soft_vote, hard_vote, fit_temperature, fit_ensemble, predict_ensemble, leave_one_out)

# Searches
from cinic_fastai.study.search import search, gp_optimizer
from cinic_fastai.record import best_trial, read_journal
from cinic_fastai.results.surrogate import surrogate

# Plans and studies
from cinic_fastai.plan_file import read_plan, parse_plan
from cinic_fastai.study.trainer import StudyOptions
from cinic_fastai.study.runner import run_study, StudyRunner
from cinic_fastai.study.face import Study
from cinic_fastai.report.render import write_page

# Tables of a study
from cinic_fastai.results.tables.runs import runs_table, history_table, seeds_table
from cinic_fastai.results.tables.search import trials_table, best_table
from cinic_fastai.results.tables.predictors import predictors_table, class_table, ensembles_table

# Their pictures
from cinic_fastai.results.plots.curves import curves_table, plot_curves
from cinic_fastai.results.plots.search import plot_searches, plot_dependence
from cinic_fastai.results.plots.predictors import (
    plot_predictors, plot_classes, plot_reliability, plot_confusion, plot_disagreement)

# New images
from cinic_fastai.results.predict import load_predictor
from cinic_fastai.results.export import export_predictor

# Errors
from cinic_fastai.core import CinicError
