# What a developer types. `make help` says what each target does.
#
# LIBTORCH (a libtorch of your own), CARGO_TARGET_DIR, XDG_CACHE_HOME (where
# downloads are kept) and FLOWERS (a folder of flowers) are taken from the
# environment; none of them has to be set.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

CARGO ?= cargo
BIN := $(or $(CARGO_TARGET_DIR),target)/release
# `introducer`, `dlc` and everything that is tested without networks.
LIGHT := --locked --no-default-features
TRAIN := $(CARGO) run --quiet --release --locked --bin train --
SEAL := cd models && sha256sum *.safetensors >SHA256SUMS
# Where the tests on real processes and the demo find the executables.
export DLC_BIN = $(abspath $(BIN))

.PHONY: help demo run-introducer run-node need-name build build-light libtorch data data-flowers models \
	test cluster-test sim sim-planted lint train-lenet train-resnet50 bench bench-models bench-membership bench-takeover bench-log bench-restart bench-partition bench-sdfs bench-jobs bench-fairness

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build data models ## a cluster of 5 nodes on this machine classifies digits and flowers while two of them are killed
	@$(CARGO) run --quiet --release $(LIGHT) --example demo

run-introducer: build-light ## one introducer; LISTEN=127.0.0.1:6000
	@exec $(BIN)/introducer --listen $(or $(LISTEN),127.0.0.1:6000) $(ARGS)

run-node: need-name build ## one node on its console; NAME= (required), LISTEN=, INTRODUCER=127.0.0.1:6000, DATA_DIR=, ARGS=
	@exec $(BIN)/node --name $(NAME) --listen $(or $(LISTEN),127.0.0.1:0) \
		--introducer $(or $(INTRODUCER),127.0.0.1:6000) --data-dir $(or $(DATA_DIR),run/$(NAME)) $(ARGS)

need-name:
	@test -n "$(NAME)" || { echo "error: a node needs a name: make run-node NAME=n1" >&2; exit 2; }

build: libtorch build-light ## the executables introducer, node and dlc, in target/release
	@$(CARGO) build --release --locked --bin node

# Without the feature `torch`, so that neither links or loads libtorch.
build-light:
	@$(CARGO) build --release $(LIGHT) --bin introducer --bin dlc

libtorch: ## libtorch for the CPU, fetched once (540 MB) into the user's cache; or your own, by LIBTORCH=
	@.make/libtorch.sh

data: ## MNIST in data/mnist, flowers in data/flowers: from FLOWERS=DIR, or else the official archive (218 MB)
	@data/fetch.sh mnist
	@FLOWERS="$(FLOWERS)" data/fetch.sh flowers-if-there

data-flowers: ## the flowers alone; fails where they cannot be had
	@FLOWERS="$(FLOWERS)" data/fetch.sh flowers

models: ## verifies the weights in models/ and names the models that have none
	@models/verify.sh

# Without networks first, the tests on real processes and the simulator among
# them; then what needs libtorch, on the build of the executables. Able to plant
# bugs all along, so that it is compiled once; the executables never are.
test: build data models ## every test that needs no special machine
	$(CARGO) test $(LIGHT) --features planted --no-fail-fast
	@$(MAKE) --no-print-directory sim-planted
	$(CARGO) test --release --locked --lib models::

cluster-test: build data models ## the tests on real processes: start, join, put, get, infer, kill, restart
	$(CARGO) test $(LIGHT) --test cluster

# make hands SEED, SEEDS, FROM and PLANT on in the environment.
sim: ## replays one simulation, SEED=n, or hunts through many, SEEDS=n (each twice; ONCE=1)
	@test -n "$(SEED)$(SEEDS)" || { echo "error: which? make sim SEED=7 or make sim SEEDS=2000" >&2; exit 2; }
	@$(CARGO) test $(LIGHT) $(if $(PLANT),--features planted) --test sim

# Each is caught by a watcher, mostly within a dozen seeds. Those of the log alone, some of which
# need more elections than the whole cluster sees, are planted in its own storms besides.
PLANTS := ack-before-fsync removal-without-agreement task-twice row-twice vote-twice vote-for-shorter-log \
	snapshot-before-fsync read-without-confirmation request-twice two-tasks-at-once no-repair \
	decay-ignored commit-short swept-in-haste numbered-anew
sim-planted: ## plants known bugs in the simulated cluster; a watcher must catch each within 2,000 seeds
	@RUST_BACKTRACE=0 $(CARGO) test --quiet $(LIGHT) --features planted --lib planted_bugs_are_caught
	@for plant in $(PLANTS); do \
		echo "planted: $$plant"; \
		PLANT=$$plant SEEDS=2000 $(CARGO) test --quiet $(LIGHT) --features planted --test sim || exit 1; \
	done

lint: libtorch ## format, clippy, licences and sources of the dependencies, advisories
	@.make/lint.sh

train-lenet: libtorch data ## trains LeNet anew on MNIST, in minutes; DATA=data/mnist, EPOCHS=
	@$(TRAIN) lenet --data $(or $(DATA),data/mnist) $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS)
	@$(TRAIN) evaluate lenet --data $(or $(DATA),data/mnist)
	@$(SEAL)

train-resnet50: libtorch ## trains ResNet-50 anew on a folder of photographs for each class, in hours; DATA=data/flowers, EPOCHS=
	@[ -n "$(DATA)" ] || $(MAKE) --no-print-directory data-flowers
	@$(TRAIN) resnet50 --data $(or $(DATA),data/flowers) $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS)
	@$(TRAIN) evaluate resnet50 --data $(or $(DATA),data/flowers)
	@$(SEAL)

bench: bench-models bench-membership bench-takeover bench-log bench-restart bench-partition bench-sdfs bench-jobs bench-fairness ## the benchmarks

bench-models: libtorch models ## our engine against tch eager, ONNX Runtime and OpenVINO (where pip has them); MODEL=lenet for one
	@$(CARGO) run --quiet --release $(LIGHT) --example bench-images
	@$(CARGO) build --quiet --release --locked --example bench-models
	@PEERS_PYTHON="$$(tests/bench/peers.sh)" $(CARGO) run --quiet --release --locked --example bench-models -- $(MODEL)

bench-membership: build ## detection, wrong removals, traffic, churn; real processes and links; PARTS=, HOURS=, EVENTS=, SEEDS=, ROUNDS=
	@$(CARGO) run --quiet --release $(LIGHT) --example bench-membership -- $(PARTS)

bench-takeover: build models data ## the coordinator of seven real nodes fails while jobs run; ROUNDS=
	@$(CARGO) run --quiet --release $(LIGHT) --example bench-takeover

bench-log: build ## entries of the log in a second with 3 and 7 voters, against the disk's syncs; SPAN=
	@$(CARGO) run --quiet --release $(LIGHT) --example bench-log

bench-restart: build models data ## all of seven nodes are killed in mid-work and start again; ROUNDS=, SEED=
	@$(CARGO) run --quiet --release $(LIGHT) --example bench-restart

bench-partition: build ## seven nodes in network namespaces are cut into five and two; ROUNDS= (root, nft)
	@$(CARGO) run --quiet --release $(LIGHT) --example bench-partition

bench-sdfs: build ## files of SDFS against what the disk does; PARTS= (files sparse small repair beside catalog crashes), ROUNDS=
	@$(CARGO) run --quiet --release $(LIGHT) --example bench-sdfs -- $(PARTS)

bench-jobs: build models data ## scheduling alone; many jobs; jobs of 1, 2 and 4 nodes against plain processes; PARTS= (scheduler many lenet onnx resnet50), NODES=, BATCHES=, ROUNDS=
	@$(CARGO) build --quiet --release --locked --example bench-plain
	@PEERS_PYTHON="$$(tests/bench/peers.sh)" $(CARGO) run --quiet --release $(LIGHT) --example bench-jobs -- $(PARTS)

bench-fairness: build models data ## ResNet-50 and LeNet share 4 and 10 nodes; draws their rates over time; NODES=, BATCHES=
	@$(CARGO) run --quiet --release $(LIGHT) --example bench-fairness
