# All set-up that the targets need, they do themselves; PostgreSQL and the
# linter are downloaded once, in pinned versions.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
GOLANGCI_LINT_VERSION := 2.15.0
LINT := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pgrunbook/golangci-lint-$(GOLANGCI_LINT_VERSION)
# The majors that tests name beside the pair in PGRUNBOOK_TEST_PAIR (15:18).
MAJORS ?= 12 15 18
# Packages tested at the same time: each may run several servers, and those that run the built
# program keep two migrations going.
TEST_PROCS ?= 2
WHOLE_PROCS ?= 2
TEST_TIMEOUT ?= 70m
SOAK_TIMEOUT ?= 26h
PKG ?= ./...
# Packages whose tests run the built program: the race detector would look at the harness alone.
PROGRAM_TESTS := /(examples|internal/(cutover|docs|faults|histories|suites))$$
# Packages that show, built with the tag failpoint, that their tests notice a broken protocol.
MUTANT_TESTS := /steps/internal/(freeze|load|pass)$$
# Its tests come one after the other: they go on beside all else, so that no core waits for them.
SLOW_TESTS := /steps$$
# Of them, walks over a model in one goroutine, which the race detector only slows down.
WALKS := TestModel
# go test begins its packages in the order given: no core waits at the end for one that began last.
LONGEST_FIRST := awk '/\/(faults|examples)$$/ {print; next} {rest = rest $$0 "\n"} END {printf "%s", rest}'
# Whole migrations, and tests of the harness, that make test leaves to PGRUNBOOK_FULL=1, the form of
# continuous integration: with them, the two cores of a small machine need an hour.
FULL_TESTS := TestApproval|TestThereAndBack|TestTampering|TestCapturedAgainAfterAWayBack|TestDDLStopsByDefault|TestF02SettledByAnyCommand|TestToManagedCloud|TestSecondServer|TestR16FailoverOfTheSource|TestAbortDropsWhatWasMadeOnTheTarget|TestAbortWithoutTheSource|TestAbortRefusesAfterTheFlip|$\
  TestDDLInTheMiddle|TestDeltaLimitWhileCatchingUp|TestDeltaLimitForgetsWhatWasTaken|TestDeltaLimitHoldsALoad|TestF40BeforeCaptureAndAtFreeze|TestF40WhileLoading|TestF15SwitchAfterLostCommit|TestStates|TestLimits|TestLockMatrix|TestCITwoJobs|TestClustersOfSeveralMajors|TestStandbyFollowsAndIsPromoted|TestRehearse|TestR14PgbenchThroughTheCutover|$\
  TestF02KilledInTheFreeze|TestF05Signals|TestF15LostFlip|TestF19SnapshotError|TestF01ChainOfKills|TestF01DeathAfterRewrite|TestF01DeathInConcurrentBuild|TestF03StoppedRunner|TestF03StealFromALiveRunner|TestF06LocalDisk|TestF06JournalThatLostRows|TestF08ClocksThatJump|TestF08LagBesideWrongClocks|TestF08FinishBesideAWrongClock|TestF08WrongClocks|TestF08JumpsInARun|TestF08BudgetOverAJump|TestF08StoppedBesideAJump|$\
  TestF10F11Servers|TestF10WayBack|TestF12F13Failover|TestF12StandbyAtTheAddress|TestF13FailoverAfterTheFlip|TestF14CarriedThroughBandwidth|TestF14CarriedThroughLatency|TestF14CutsAllTheTime|TestF14CutInCopy|TestF14Network|TestF15LostAnswers|TestF16DeltasFillTheSource|TestF16SourceDiskFull|TestF16TargetDiskFull|$\
  TestF17Limits|TestF18F50HostileSettings|TestF20Poolers|TestF21Access|TestF21TLS|TestF22ReplicaLag|TestF22CheckpointStorm|TestF31Blockers|TestF41DeathsBeforeADroppedTableJoined|TestF41RenamedSequences|TestF45ExistingTargetKeepsItsOwn|TestF45KeyExchanged|$\
  TestF84F85AbortLeavesNoTrace|TestF84FinishKilled|TestF84AbortAfterDeathInRestore|TestF85AbortAfterDeath|TestFollowThenBack|TestNoWayBack|TestNoWayBackAskedFor|$\
  TestOneSideGone|TestPasswordsShowNowhere|TestR14KilledBehindPoolers|TestR18OldSide|TestR27OldSideByDefault|TestRollbackWithoutTarget|$\
  TestEveryBoundary|TestGivenUpTargetIsNotOpened|TestOverBudget|TestUntilEachStep|TestWayBackBetweenMajors|TestLongScripts|$\
  TestWhatCountsAsGone|TestWhatIf|TestProxy.*|TestBouncer.*|TestCopiedClustersHaveTheirOwnIdentity|TestServerDiesWithItsOwner|TestNextStartSweepsWhatAKilledOwnerLeft|$\
  TestSchemaDumpComparesAcrossMajors|TestClientsDumpANewerServer|TestDDLStops|TestF11W5CrashThatEmptiesUnloggedTables|TestF11W5CrashOfTheSourceOnTheWayBack|TestFreezeBesideLocks|TestTouchedTargetBesideWhatIsCarried|TestWayBackOutlivesDeathsWhileCarrying|TestWayBackKnowsWhatNoPassCarries|TestDeadRollbackLeavesNoProof|TestF41NewTablesChangeWhileTheyJoin|TestF41ChangedBeforeItsCapture|TestF41ChangedBeforeItsCaptureStops|TestF40TakenBackBeforeItWasRecorded|TestF41TakenBackBeforeItWasRecorded|TestF41TakenBackBesideWhatFailed|TestF41TakenBackAfterTheLoadNeededIt|TestF43PartitionComesWhileItsTreeJoins|TestF12PromotedSourceOfTablesWithoutAKey|TestF10F41DDLThatACrashCouldTakeBack|TestWholeStory|TestPauseIsHeard|$\
  TestOutputThatNobodyReads|TestSignalWithOutputThatNobodyReads|TestPoolerThatStandsStillInTheSwitch|$\
  TestPoolersAstray|TestUndoneInReverse|TestFreezeHeedsPauseAndWindow|TestPredictedByRehearsal|TestReaderAtTheOpening|TestUndoThatFails|TestR8SubscribedSource|$\
  TestPgbouncerCutover|TestCopyRate|TestPassReadsNoMoreThanItHasTo|TestD17PassesLeaveALoadingTableAlone|TestF41SequencesDroppedLate|TestF07KeyChangesBetweenTwoApplies|TestApplicationThatIsTooFast|TestDiffFindsPlantedDifferences|TestLedgerFindsPlantedDamage|TestLedgerMovesToTheOtherServer|TestNewDBIsDroppedThoughInUse|$\
  TestR2ClosedSurvivesACrash|TestVerifyAfterTheFlip|TestDifferencesTakeBackAnEarlierProof|TestAbortWithoutTheTarget|TestKeyRangesOnOldSources|TestF48Names|TestIsolation|TestRegress|TestF41DroppedAndMadeAgain|TestF43OtherPlaces|TestF43OtherPlacesStop|TestHotTable|TestF35WideDatabase|TestF35WideRowsInOnePass|TestGuardianUndoesTheSwitch|TestBrokenPrograms|TestBrokenHistories|TestUnvalidatedChecksWaitForTheFlip|TestUnvalidatedChecksLetRowsComeAgain|TestModesAndRolesAreThoseOfTheFlip
SKIP := $(if $(PGRUNBOOK_FULL)$(PGRUNBOOK_SOAK),,-skip '^($(FULL_TESTS))$$')

.PHONY: help
help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

.PHONY: build
build: ## Build bin/pgrunbook
	$(GO) build -trimpath -o bin/pgrunbook ./cmd/pgrunbook

.PHONY: demo
demo: build ## Build, then migrate a throw-away database under load
	bin/pgrunbook demo

.PHONY: test
test: setup lint ## Set up, lint, vet and run all tests with the race detector (PKG=./engine/... for some)
	$(GO) vet $(PKG)
	@all=$$($(GO) list $(PKG)); failed=; pid=; log=$$(mktemp); \
	pick() { grep -E "$$@" <<<"$$all" || true; }; \
	try() { echo "$$*" >&2; "$$@" || failed=1; }; \
	trap 'rm -f "$$log"; test -z "$$pid" || { for one in $$(pgrep -P $$pid); do pkill -P $$one; kill $$one; done; kill $$pid; }' EXIT; \
	slow=$$(pick '$(SLOW_TESTS)'); unit=$$(pick -v '$(PROGRAM_TESTS)|$(SLOW_TESTS)'); mutants=$$(pick '$(MUTANT_TESTS)'); \
	whole=$$(pick '$(PROGRAM_TESTS)' | $(LONGEST_FIRST)); \
	if test -n "$$slow"; then ( \
	  $(GO) test -vet off -run '^($(WALKS))' -timeout $(TEST_TIMEOUT) $$slow || bad=1; \
	  $(GO) test -vet off -race -timeout $(TEST_TIMEOUT) -skip '^($(WALKS)$(if $(SKIP),|($(FULL_TESTS))$$$$))' $$slow || bad=1; \
	  test -z "$${bad-}" ) >"$$log" 2>&1 & pid=$$!; fi; \
	test -z "$$unit" || try $(GO) test -vet off -race -timeout $(TEST_TIMEOUT) -p $(TEST_PROCS) $(SKIP) $$unit; \
	$(if $(SKIP),true,test -z "$$mutants") || try $(GO) test -vet off -tags failpoint -run Mutant -timeout $(TEST_TIMEOUT) -p $(TEST_PROCS) $$mutants; \
	test -z "$$whole" || try $(GO) test -vet off -timeout $(TEST_TIMEOUT) -p $(WHOLE_PROCS) $(SKIP) $$whole; \
	if test -n "$$pid"; then wait $$pid || failed=1; pid=; cat "$$log"; fi; \
	test -z "$$failed"
	@$(if $(SKIP),echo "make test: left to PGRUNBOOK_FULL=1: mutants $(subst |, ,$(FULL_TESTS)) and shares of others",true)

.PHONY: soak
soak: setup ## Run the long tests (random faults, many seeds); hours (PKG=./examples/... for some)
	@mutants=$$($(GO) list $(PKG) | grep -E '$(MUTANT_TESTS)' || true); \
	test -z "$$mutants" || PGRUNBOOK_SOAK=1 $(GO) test -tags failpoint -run Mutant -count 1 -timeout $(TEST_TIMEOUT) -p 1 $$mutants
	@# The programs that tests build look for races, too; they would sleep for a second when all is said, and die of a signal.
	GORACE=atexit_sleep_ms=0 GOFLAGS=-race PGRUNBOOK_SOAK=1 $(GO) test -count 1 -timeout $(SOAK_TIMEOUT) -p 1 $(PKG)

.PHONY: lint
lint: $(LINT) ## Run golangci-lint, import directions included
	$(LINT) run $(PKG)

.PHONY: fmt
fmt: $(LINT) ## Format all Go files as lint wants them
	$(LINT) fmt

.PHONY: verify
verify: setup lint ## Check what is committed: module sums, tidiness, vet, build, the pages against the program
	$(GO) mod verify
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(GO) build ./...
	$(GO) test ./internal/docs

.PHONY: docs
docs: setup ## Renew docs/faults.md, and the blocks of README.md that the program prints, from a small real migration
	$(GO) test ./internal/docs -count 1 -run 'TestFaults|TestReadme' -update

.PHONY: setup
setup: ## Install what the tests need: gcc, npm, PostgreSQL and its clients
	CGO_ENABLED=0 $(GO) run ./internal/testpg/cmd/ensure $(MAJORS)

# The linter is built from source at the pinned version, unless one of exactly
# that version is here.
$(LINT):
	@mkdir -p $(@D)
	@for have in "$$(command -v golangci-lint || true)" "$$($(GO) env GOPATH)/bin/golangci-lint"; do \
	  if [[ -x "$$have" ]] && "$$have" version 2>/dev/null | grep -qF " $(GOLANGCI_LINT_VERSION) "; then \
	    ln -sf "$$have" $@; exit 0; \
	  fi; \
	done; \
	echo "installing golangci-lint $(GOLANGCI_LINT_VERSION)" >&2; \
	GOBIN="$(@D)" $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI_LINT_VERSION); \
	mv $(@D)/golangci-lint $@
