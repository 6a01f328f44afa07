// Jobs on a cluster in one process, in virtual time.
import { assert, describe, it } from "@effect/vitest"
import { CudaJob, JobDevices, JobStore } from "effect-cuda/cluster"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as ClusterWorkflowEngine from "effect/cluster/ClusterWorkflowEngine"
import * as Entity from "effect/cluster/Entity"
import type * as Sharding from "effect/cluster/Sharding"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Workflow from "effect/workflow/Workflow"
import { passing, runner, serving, storage } from "./support.ts"

const options = { size: 2, payload: Schema.Int, checkpoint: Schema.Int, success: Schema.Int } as const
const job = CudaJob.make("count", options)
const limited = CudaJob.make("once", { ...options, restart: Schedule.recurs(0) })
type Rank = CudaJob.Rank<number, number>

const failed = (epoch: number, rank: number) =>
  ({ _tag: "ProgramFailed", epoch, rank, error: "E", message: "" }) as const

/** Counts to the payload, with a checkpoint at every step, and tells each step that it begins. */
const counting = (rank: Rank, before: (step: number) => Effect.Effect<unknown, unknown> = () => Effect.void) =>
  Effect.gen(function*() {
    let step = Option.match(rank.restored, { onNone: () => 0, onSome: ({ step }) => step })
    let total = Option.match(rank.restored, { onNone: () => 0, onSome: ({ value }) => value })
    while (step < rank.payload) {
      yield* before(step)
      yield* Effect.sleep("100 millis")
      total += ++step
      yield* rank.checkpoint(step, total)
    }
    return total
  })

describe("success", () => {
  it.effect("gives the result of every rank, in order", () =>
    Effect.gen(function*() {
      const result = yield* passing(CudaJob.run(job, { id: "a", payload: 3 })).pipe(
        Effect.provide(
          serving(job, (rank) => Effect.map(counting(rank), (total) => total * 10 + rank.rank)).pipe(
            Layer.provide(storage)
          )
        )
      )
      assert.deepStrictEqual(result, [60, 61])
    }))

  it.effect("gives every rank a device of its own, and gives the devices back", () =>
    Effect.gen(function*() {
      const devices: Array<number> = []
      const program = (rank: Rank) => Effect.as(rank.barrier("all"), devices.push(rank.device))
      yield* passing(Effect.andThen(
        CudaJob.run(job, { id: "a", payload: 1 }),
        CudaJob.run(job, { id: "b", payload: 1 })
      )).pipe(Effect.provide(serving(job, program, [3, 5]).pipe(Layer.provide(storage))))
      assert.deepStrictEqual([devices.slice(0, 2).sort(), devices.slice(2).sort()], [[3, 5], [3, 5]])
    }))

  it.effect("broadcasts, gathers and waits in the order of the calls", () =>
    Effect.gen(function*() {
      let made = 0
      const program = (rank: Rank) =>
        Effect.gen(function*() {
          const first = yield* rank.broadcast("id", Schema.Uint8Array, Effect.sync(() => Uint8Array.of(++made, 255)))
          const second = yield* rank.broadcast("id", Schema.Uint8Array, Effect.sync(() => Uint8Array.of(++made, 255)))
          if (rank.rank === 1) yield* Effect.sleep("1 second")
          yield* rank.barrier("all")
          const all = yield* rank.gather("numbers", Schema.Int, rank.rank + 10)
          return [...first, ...second, ...all].reduce((sum, value) => sum + value, 0)
        })
      const result = yield* passing(CudaJob.run(job, { id: "a", payload: 0 })).pipe(
        Effect.provide(serving(job, program).pipe(Layer.provide(storage)))
      )
      assert.deepStrictEqual(result, [534, 534])
      assert.strictEqual(made, 2, "only rank 0 makes the value")
    }))

  it.effect("joins the ranks of an epoch with any function that meets by an id", () =>
    Effect.gen(function*() {
      const joined: Array<unknown> = []
      const devices: Array<number> = []
      const program = (rank: Rank) => {
        devices[rank.rank] = rank.device
        return CudaJob.rendezvous(rank, {
          id: Effect.sync(() => Uint8Array.of(7, rank.epoch)),
          join: (options) => Effect.as(rank.barrier("joined"), joined.push(options))
        })
      }
      yield* passing(CudaJob.run(job, { id: "a", payload: 0 })).pipe(
        Effect.provide(serving(job, program).pipe(Layer.provide(storage)))
      )
      assert.sameDeepMembers(
        joined,
        [0, 1].map((rank) => ({ id: Uint8Array.of(7, 1), rank, size: 2, device: devices[rank] }))
      )
    }))

  it.effect("joins the run of an id, and keeps its result", () =>
    Effect.gen(function*() {
      let runs = 0
      const program = (rank: Rank) => Effect.andThen(Effect.sync(() => runs++), counting(rank))
      const results = yield* passing(Effect.gen(function*() {
        const both = yield* Effect.all(
          [CudaJob.run(job, { id: "a", payload: 3 }), CudaJob.run(job, { id: "a", payload: 3 })],
          { concurrency: "unbounded" }
        )
        return [...both, yield* CudaJob.run(job, { id: "a", payload: 99 })]
      })).pipe(Effect.provide(serving(job, program).pipe(Layer.provide(storage))))
      assert.deepStrictEqual(results, [[6, 6], [6, 6], [6, 6]])
      assert.strictEqual(runs, 2)
    }))

  it.effect("tells where a job stands", () =>
    Effect.gen(function*() {
      yield* passing(Effect.gen(function*() {
        const idle = yield* CudaJob.status(job, "a")
        const fiber = yield* Effect.forkChild(CudaJob.run(job, { id: "a", payload: 3 }))
        yield* Effect.sleep("1 second")
        const status = yield* CudaJob.status(job, "a")
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual(idle, { epoch: 0, ranks: [] })
        assert.deepStrictEqual([status.epoch, status.step], [1, 2])
        assert.sameDeepMembers(status.ranks.map(({ device, rank }) => [rank, device]), [[0, 0], [1, 1]])
      })).pipe(Effect.provide(
        serving(job, (rank) => counting(rank, (step) => step === 2 ? Effect.never : Effect.void)).pipe(
          Layer.provide(storage)
        )
      ))
    }))

  describe("as a step of a workflow", () => {
    const Training = Workflow.make("training", {
      payload: { id: Schema.String },
      success: Schema.Array(Schema.Int),
      error: CudaJob.CudaJobFailed,
      idempotencyKey: ({ id }) => id
    })
    const workflow = Training.toLayer(({ id }) => CudaJob.activity(job, { id, payload: 30 }))
    const working = (program: (rank: Rank) => Effect.Effect<number, unknown>) =>
      Layer.fresh(workflow).pipe(
        Layer.provideMerge(Layer.fresh(ClusterWorkflowEngine.layer)),
        Layer.provideMerge(serving(job, program))
      )

    it.effect("gives the step its results", () =>
      Effect.gen(function*() {
        const layer = working((rank) => counting(rank)).pipe(Layer.provide(storage))
        const result = yield* passing(Effect.provide(Training.execute({ id: "w" }), layer))
        assert.deepStrictEqual(result, [465, 465])
      }))

    it.effect("goes on when the workflow is replayed on another runner", () =>
      Effect.gen(function*() {
        const stored = yield* Layer.build(storage)
        const halfway = yield* Deferred.make<void>()
        const starts: Array<ReadonlyArray<number>> = []
        const program = (rank: Rank) =>
          Effect.suspend(() => {
            starts.push([rank.epoch, Option.match(rank.restored, { onNone: () => 0, onSome: ({ step }) => step })])
            return counting(rank, (step) => step === 15 ? Deferred.succeed(halfway, undefined) : Effect.void)
          })
        const layer = working(program).pipe(Layer.provide(Layer.succeedContext(stored)))
        const first = yield* Scope.make()
        const context = yield* Layer.buildWithScope(layer, first)
        yield* Effect.forkChild(Effect.provideContext(Training.execute({ id: "w" }), context))
        yield* passing(Deferred.await(halfway))
        yield* passing(Scope.close(first, Exit.void))
        const result = yield* passing(Effect.provide(Training.execute({ id: "w" }), layer))
        assert.deepStrictEqual(result, [465, 465])
        assert.deepStrictEqual(starts.map(([epoch]) => epoch), [1, 1, 2, 2])
        for (const [, step = 0] of starts.slice(2)) assert.isAtLeast(step, 10)
      }))
  })
})

describe("failure of a rank", () => {
  const kinds: Record<string, Effect.Effect<never, string>> = {
    fails: Effect.fail("boom"),
    dies: Effect.die(new TypeError("boom")),
    "interrupts itself": Effect.interrupt
  }
  for (const [kind, fault] of Object.entries(kinds)) {
    it.effect(`restarts all from the last checkpoint when one ${kind}`, () =>
      Effect.gen(function*() {
        const starts: Array<ReadonlyArray<number>> = []
        const closed: Array<ReadonlyArray<number>> = []
        const program = (rank: Rank) =>
          Effect.gen(function*() {
            const { epoch, restored } = rank
            starts.push([epoch, rank.rank, Option.match(restored, { onNone: () => 0, onSome: ({ step }) => step })])
            yield* Effect.addFinalizer(() => Effect.sync(() => closed.push([epoch, rank.rank])))
            return yield* counting(rank, (step) => step === 3 && rank.rank === 1 && epoch === 1 ? fault : Effect.void)
          })
        const result = yield* passing(CudaJob.run(job, { id: "a", payload: 5 })).pipe(
          Effect.provide(serving(job, program).pipe(Layer.provide(storage)))
        )
        assert.deepStrictEqual(result, [15, 15])
        assert.sameDeepMembers(starts, [[1, 0, 0], [1, 1, 0], [2, 0, 3], [2, 1, 3]])
        assert.sameDeepMembers(closed.slice(0, 2), [[1, 0], [1, 1]])
      }))
  }

  it.effect("stops every rank of an epoch before the next one begins", () =>
    Effect.gen(function*() {
      let atWork = 0
      let most = 0
      const program = (rank: Rank) =>
        Effect.gen(function*() {
          most = Math.max(most, ++atWork)
          yield* Effect.addFinalizer(() => Effect.andThen(Effect.sleep("3 seconds"), Effect.sync(() => atWork--)))
          return yield* counting(
            rank,
            (step) => step === rank.epoch && rank.rank === 0 && rank.epoch < 4 ? Effect.fail("no") : Effect.void
          )
        })
      yield* passing(CudaJob.run(job, { id: "a", payload: 6 })).pipe(
        Effect.provide(serving(job, program).pipe(Layer.provide(storage)))
      )
      assert.deepStrictEqual([atWork, most], [0, 2])
    }))

  it.effect("fails with the last failure when the restarts are used up", () =>
    Effect.gen(function*() {
      const twice = CudaJob.make("twice", {
        ...options,
        restart: Schedule.spaced("1 second").pipe(Schedule.upTo({ times: 2 }))
      })
      let runs = 0
      const program = (rank: Rank) =>
        Effect.suspend(() => {
          if (rank.rank === 1) return Effect.never
          runs++
          return Effect.fail({ _tag: "Broken" })
        })
      const error = yield* passing(Effect.flip(CudaJob.run(twice, { id: "a", payload: 1 }))).pipe(
        Effect.provide(serving(twice, program).pipe(Layer.provide(storage)))
      )
      assert.instanceOf(error, CudaJob.CudaJobFailed)
      if (error._tag !== "CudaJobFailed") return
      assert.deepStrictEqual([error.job, error.id, error.restarts, error.reason._tag], [
        "twice",
        "a",
        2,
        "ProgramFailed"
      ])
      assert.deepInclude(error.reason, { rank: 0, epoch: 3, error: "Broken" })
      assert.include(error.message, "epoch 3")
      assert.strictEqual(runs, 3)
    }))

  it.effect("decides with the failure whether to restart", () =>
    Effect.gen(function*() {
      const choosy = CudaJob.make("choosy", {
        ...options,
        restart: Schedule.spaced("1 second").pipe(
          Schedule.setInputType<CudaJob.RankFailure>(),
          Schedule.while(({ input }) => input._tag === "ProgramFailed" && input.error === "Passing")
        )
      })
      const program = (rank: Rank) => Effect.fail({ _tag: rank.epoch < 3 ? "Passing" : "Final" })
      const error = yield* passing(Effect.flip(CudaJob.run(choosy, { id: "a", payload: 1 }))).pipe(
        Effect.provide(serving(choosy, program).pipe(Layer.provide(storage)))
      )
      assert.strictEqual(error._tag === "CudaJobFailed" ? error.restarts : -1, 2)
    }))

  it.effect("counts a rank without progress as failed, if asked to", () =>
    Effect.gen(function*() {
      const watched = CudaJob.make("watched", { ...options, stall: "5 seconds" })
      const epochs: Array<number> = []
      const program = (rank: Rank) =>
        Effect.andThen(
          Effect.sync(() => epochs.push(rank.epoch)),
          counting(rank, (step) =>
            step !== 1 || rank.rank !== 1
              ? Effect.void
              : rank.epoch === 1
              ? Effect.never
              // slow, but it says so
              : Effect.repeat(Effect.andThen(Effect.sleep("3 seconds"), rank.heartbeat), { times: 3 }))
        )
      const alive = (rank: Rank) =>
        // the other rank waits in its checkpoint, so it says that it is alive
        Effect.raceFirst(
          program(rank),
          Effect.forever(Effect.andThen(rank.rank === 0 ? rank.heartbeat : Effect.void, Effect.sleep("1 second")))
        )
      const result = yield* passing(CudaJob.run(watched, { id: "a", payload: 3 })).pipe(
        Effect.provide(serving(watched, alive).pipe(Layer.provide(storage)))
      )
      assert.deepStrictEqual(result, [6, 6])
      assert.deepStrictEqual(epochs, [1, 1, 2, 2])
    }))

  it.effect("looks in the next shard group when no runner serves one", () =>
    Effect.gen(function*() {
      const grouped = CudaJob.make("grouped", { ...options, groups: ["nowhere", "default"] })
      const result = yield* passing(CudaJob.run(grouped, { id: "a", payload: 3 })).pipe(
        Effect.provide(serving(grouped, counting).pipe(Layer.provide(storage)))
      )
      assert.deepStrictEqual(result, [6, 6])
    }))

  it.effect("fails when no runner has a device for a rank", () =>
    Effect.gen(function*() {
      const hasty = CudaJob.make("hasty", { ...options, placement: "5 seconds", restart: Schedule.recurs(0) })
      const error = yield* passing(Effect.flip(CudaJob.run(hasty, { id: "a", payload: 1 }))).pipe(
        Effect.provide(serving(hasty, counting, [0]).pipe(Layer.provide(storage)))
      )
      assert.strictEqual(error._tag === "CudaJobFailed" ? error.reason._tag : error._tag, "RankUnplaced")
    }))
})

describe("interruption", () => {
  it.effect("of run stops the ranks, and the job for ever", () =>
    Effect.gen(function*() {
      const closed: Array<number> = []
      const program = (rank: Rank) =>
        Effect.andThen(Effect.addFinalizer(() => Effect.sync(() => closed.push(rank.rank))), Effect.never)
      yield* passing(Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(CudaJob.run(job, { id: "a", payload: 3 }))
        yield* Effect.sleep("2 seconds")
        yield* Fiber.interrupt(fiber)
        yield* Effect.sleep("2 seconds")
        assert.sameMembers(closed, [0, 1])
        const again = yield* Effect.exit(CudaJob.run(job, { id: "a", payload: 3 }))
        assert.isTrue(Exit.isFailure(again) && Cause.hasInterruptsOnly(again.cause))
        assert.strictEqual((yield* CudaJob.status(job, "a")).epoch, 0)
      })).pipe(Effect.provide(serving(job, program).pipe(Layer.provide(storage))))
    }))

  it.effect("comes from any client", () =>
    Effect.gen(function*() {
      yield* passing(Effect.gen(function*() {
        yield* CudaJob.interrupt(job, "none")
        const fiber = yield* Effect.forkChild(CudaJob.run(job, { id: "a", payload: 3 }))
        yield* Effect.sleep("2 seconds")
        yield* CudaJob.interrupt(job, "a")
        const exit = yield* Fiber.await(fiber)
        assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
      })).pipe(Effect.provide(serving(job, () => Effect.never).pipe(Layer.provideMerge(storage))))
    }))
})

describe("the coordinator's runner", () => {
  it.effect("may go: the next one goes on from the last checkpoint", () =>
    Effect.gen(function*() {
      const stored = yield* Layer.build(storage)
      const halfway = yield* Deferred.make<void>()
      const starts: Array<ReadonlyArray<number>> = []
      const program = (rank: Rank) =>
        Effect.andThen(
          Effect.sync(() =>
            starts.push([
              rank.epoch,
              rank.rank,
              Option.match(rank.restored, { onNone: () => 0, onSome: ({ step }) => step })
            ])
          ),
          counting(rank, (step) => step === 15 ? Deferred.succeed(halfway, undefined) : Effect.void)
        )
      const layer = serving(job, program).pipe(Layer.provide(Layer.succeedContext(stored)))
      const first = yield* Scope.make()
      const context = yield* Layer.buildWithScope(layer, first)
      yield* Effect.forkChild(Effect.provideContext(CudaJob.run(job, { id: "a", payload: 30 }), context))
      yield* passing(Deferred.await(halfway))
      yield* passing(Scope.close(first, Exit.void))
      const before = starts.length
      const result = yield* passing(CudaJob.run(job, { id: "a", payload: 30 })).pipe(Effect.provide(layer))
      assert.deepStrictEqual(result, [465, 465])
      assert.strictEqual(before, 2)
      const [one, other] = starts.slice(2)
      assert.deepStrictEqual([one?.[0], other?.[0]], [2, 2])
      assert.strictEqual(one?.[2], other?.[2])
      assert.isAtLeast(one?.[2] ?? 0, 10)
    }))
})

describe("epochs", () => {
  /** A client that speaks for a rank, as a dead incarnation would. */
  const speaking = Effect.gen(function*() {
    const client = yield* job.entities.coordinator.client
    return client("a")
  })

  it.effect("make messages of older epochs and of other incarnations harmless", () =>
    Effect.gen(function*() {
      const epochs = new Set<number>()
      const reached = yield* Deferred.make<void>()
      const resume = yield* Deferred.make<void>()
      const program = (rank: Rank) =>
        counting(rank, (step) => {
          epochs.add(rank.epoch)
          return step === 2 && rank.epoch === 1
            ? Effect.fail("boom")
            : step === 3
            ? Effect.andThen(Deferred.succeed(reached, undefined), Deferred.await(resume))
            : Effect.void
        })
      yield* passing(Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(CudaJob.run(job, { id: "a", payload: 5 }))
        yield* Deferred.await(reached)
        const coordinator = yield* speaking
        const old = { epoch: 1, rank: 0, incarnation: "old" }
        const other = { epoch: 2, rank: 0, incarnation: "other" }
        for (const sender of [old, other]) {
          const answers = yield* Effect.all([
            Effect.flip(coordinator.Beat({ ...sender, received: [] })),
            Effect.flip(coordinator.Share({ ...sender, key: "gather/sum#0", of: "all", value: "666" })),
            Effect.flip(coordinator.Checkpoint({ ...sender, step: 99, value: "666" })),
            Effect.flip(coordinator.Join({ ...sender, entity: "0:a/0/77", device: 9, runner: "nowhere" }))
          ])
          for (const answer of answers) assert.strictEqual(answer._tag, "StaleEpoch")
          assert.deepInclude(answers[0], { epoch: sender.epoch, current: 2, job: "count" })
        }
        const ranks = yield* job.entities.rank.client
        const status = yield* CudaJob.status(job, "a")
        assert.deepStrictEqual([status.epoch, status.step, status.ranks.length], [2, 3, 2])
        // A rank that has seen a later epoch does not start in an older one.
        const again = yield* Effect.flip(ranks("0:a/0/0").Start({ job: "a", epoch: 1, rank: 0 }))
        assert.strictEqual(again._tag, "StaleEpoch")
        yield* Deferred.succeed(resume, undefined)
        assert.deepStrictEqual(yield* Fiber.join(fiber), [15, 15])
        assert.deepStrictEqual([...epochs], [1, 2], "none of this has ended the epoch")
      })).pipe(Effect.provide(serving(job, program).pipe(Layer.provide(storage))))
    }))

  it.effect("end when a second incarnation of a rank joins", () =>
    Effect.gen(function*() {
      const starts: Array<number> = []
      const program = (rank: Rank) => {
        starts.push(rank.epoch)
        return counting(rank, () => rank.epoch === 1 ? Effect.never : Effect.void)
      }
      yield* passing(Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(CudaJob.run(job, { id: "a", payload: 5 }))
        yield* Effect.sleep("1 second")
        const coordinator = yield* speaking
        const second = { epoch: 1, rank: 0, incarnation: "second", entity: "0:a/0/0", device: 9, runner: "elsewhere" }
        assert.strictEqual((yield* Effect.flip(coordinator.Join(second)))._tag, "StaleEpoch")
        assert.deepStrictEqual(yield* Fiber.join(fiber), [15, 15])
        assert.deepStrictEqual(starts, [1, 1, 2, 2])
      })).pipe(Effect.provide(serving(job, program).pipe(Layer.provide(storage))))
    }))

  it.effect("end when another coordinator has begun a later one, whose checkpoint stays", () =>
    Effect.gen(function*() {
      const stored = yield* Layer.build(storage)
      const store = Context.get(stored, JobStore.JobStore)
      const restored: Array<ReadonlyArray<number>> = []
      const program = (rank: Rank) => {
        if (Option.isSome(rank.restored)) {
          restored.push([rank.epoch, rank.restored.value.step, rank.restored.value.value])
        }
        return counting(rank)
      }
      const result = yield* passing(Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(CudaJob.run(job, { id: "a", payload: 50 }))
        yield* Effect.sleep("1 second")
        const { epoch } = yield* store.begin("count/a")
        assert.strictEqual(epoch, 2)
        assert.isTrue(yield* store.save("count/a", 2, { step: 40, values: ["820", "820"] }))
        assert.isFalse(yield* store.save("count/a", 1, { step: 41, values: ["0", "0"] }))
        return yield* Fiber.join(fiber)
      })).pipe(Effect.provide(serving(job, program).pipe(Layer.provide(Layer.succeedContext(stored)))))
      assert.deepStrictEqual(result, [1275, 1275])
      assert.deepStrictEqual(restored, [[3, 40, 820], [3, 40, 820]])
    }))
})

describe("leases", () => {
  /** A runner whose coordinators, or ranks, are those of the test. */
  const withFakes = (
    fakes: Layer.Layer<never, never, Sharding.Sharding>,
    program: (rank: Rank) => Effect.Effect<number, unknown, Scope.Scope>,
    definition = job
  ) =>
    CudaJob.toLayer(definition, program).pipe(
      Layer.provide(fakes), // first, and the first of a type counts
      Layer.provideMerge(runner()),
      Layer.provide(JobDevices.layer([0, 1])),
      Layer.provide(storage)
    )

  it.effect("a rank stops by itself when its coordinator does not answer", () =>
    Effect.gen(function*() {
      let silentAfter = Infinity
      let lastAnswer = 0
      let closed = 0
      const beat = Effect.flatMap(Clock.currentTimeMillis, (now) => {
        if (now > silentAfter) return Effect.never
        lastAnswer = now
        return Effect.void
      })
      const { coordinator, rank } = job.entities
      const fake = coordinator.toLayer({
        Run: () => Effect.never,
        Join: () => Effect.as(beat, { payload: "3" }),
        Beat: () => beat,
        Share: () => Effect.never,
        Checkpoint: () => Effect.never,
        Status: () => Effect.never
      }, { concurrency: "unbounded" })
      const program = () =>
        Effect.andThen(
          Effect.addFinalizer(() =>
            Effect.map(Clock.currentTimeMillis, (now) => {
              closed = now
            })
          ),
          Effect.never
        )
      yield* passing(Effect.gen(function*() {
        const ranks = yield* rank.client
        const fiber = yield* Effect.forkChild(Effect.flip(ranks("0:a/0/0").Start({ job: "a", epoch: 1, rank: 0 })))
        yield* Effect.sleep("1 minute")
        assert.strictEqual(closed, 0, "answered heartbeats keep it")
        silentAfter = yield* Clock.currentTimeMillis
        assert.strictEqual((yield* Fiber.join(fiber))._tag, "StaleEpoch")
        assert.isAbove(closed, silentAfter)
        assert.isAtMost(closed - lastAnswer, 8_000, "80 % of the timeout")
        assert.isTrue(yield* ranks("0:a/0/0").Stop({ epoch: 1 }))
        assert.isFalse(yield* ranks("0:a/0/0").Stop({ epoch: 2 }), "cannot tell")
      })).pipe(Effect.provide(withFakes(fake, program)))
    }))

  it.effect("a rank that is silent is lost, and the next epoch waits for the end of its lease", () =>
    Effect.gen(function*() {
      const { coordinator, rank } = job.entities
      const joined: Array<number> = []
      const fake = rank.toLayer(
        Effect.gen(function*() {
          const client = yield* coordinator.client
          const entity = (yield* Entity.CurrentAddress).entityId
          return rank.of({
            Start: ({ payload: { epoch, job, rank } }) =>
              Effect.gen(function*() {
                yield* Effect.orDie(
                  client(job).Join({ epoch, rank, incarnation: entity, entity, device: 0, runner: "here" })
                )
                joined.push(yield* Clock.currentTimeMillis)
                if (epoch > 1) return "7"
                // The other rank fails after a second; this one can neither be heard nor stopped.
                return yield* rank === 0 ? Effect.never : Effect.delay(Effect.fail(failed(epoch, rank)), "1 second")
              }),
            Stop: () => Effect.never
          })
        }),
        { concurrency: "unbounded" }
      )
      const result = yield* passing(CudaJob.run(job, { id: "a", payload: 1 })).pipe(
        Effect.provide(withFakes(fake, () => Effect.never))
      )
      assert.deepStrictEqual(result, [7, 7])
      const [first = 0, , third = 0] = joined
      assert.isAtLeast(third - first, 8_000, "the lease of the rank that could not be stopped")
    }))

  it.effect("a coordinator forgets shared values when all ranks say that they have them", () =>
    Effect.gen(function*() {
      const { coordinator, rank } = job.entities
      const fake = rank.toLayer(
        Effect.gen(function*() {
          const client = yield* coordinator.client
          const entity = (yield* Entity.CurrentAddress).entityId
          return rank.of({
            Start: ({ payload: { epoch, job, rank } }) =>
              Effect.gen(function*() {
                const self = { epoch, rank, incarnation: entity }
                const leader = client(job)
                const ask = leader.Share({ ...self, key: "k", of: "all" })
                yield* leader.Join({ ...self, entity, device: 0, runner: "here" })
                yield* leader.Share({ ...self, key: "k", of: "all", value: String(rank) })
                yield* Effect.sleep("1 second")
                const kept = yield* Effect.timeoutOption(ask, "1 second")
                if (rank === 0) yield* leader.Beat({ ...self, received: ["k"] })
                yield* Effect.sleep("1 second")
                const halfway = yield* Effect.timeoutOption(ask, "1 second")
                if (rank === 1) yield* leader.Beat({ ...self, received: ["k", "unknown"] })
                yield* Effect.sleep("1 second")
                const forgotten = yield* Effect.timeoutOption(ask, "1 second")
                return [kept, halfway, forgotten].filter(Option.isSome).length.toString()
              }).pipe(Effect.orDie),
            Stop: () => Effect.succeed(true)
          })
        }),
        { concurrency: "unbounded" }
      )
      const result = yield* passing(CudaJob.run(job, { id: "a", payload: 1 })).pipe(
        Effect.provide(withFakes(fake, () => Effect.never))
      )
      assert.deepStrictEqual(result, [2, 2])
    }))

  it.effect("a rank that never says anything is lost after the timeout", () =>
    Effect.gen(function*() {
      const { coordinator, rank } = limited.entities
      const fake = rank.toLayer(
        Effect.gen(function*() {
          const client = yield* coordinator.client
          const entity = (yield* Entity.CurrentAddress).entityId
          return rank.of({
            Start: ({ payload: { epoch, job, rank } }) =>
              client(job).Join({ epoch, rank, incarnation: entity, entity, device: 0, runner: "here" }).pipe(
                Effect.orDie,
                Effect.andThen(Effect.never)
              ),
            Stop: () => Effect.succeed(true)
          })
        }),
        { concurrency: "unbounded" }
      )
      const error = yield* passing(Effect.flip(CudaJob.run(limited, { id: "a", payload: 1 }))).pipe(
        Effect.provide(withFakes(fake, () => Effect.never, limited))
      )
      assert.strictEqual(error._tag === "CudaJobFailed" ? error.reason._tag : error._tag, "RankLost")
      assert.include(error.message, "no heartbeat from here for 10000 ms")
    }))

  it.effect("a coordinator that finds an earlier epoch waits until the leases of its ranks have run out", () =>
    Effect.gen(function*() {
      const stored = yield* Layer.build(storage)
      yield* Context.get(stored, JobStore.JobStore).begin("count/a")
      const starts: Array<number> = []
      const program = (rank: Rank) =>
        Effect.map(Clock.currentTimeMillis, (now) => {
          starts.push(now)
          return rank.epoch
        })
      const begun = yield* Clock.currentTimeMillis
      const result = yield* passing(CudaJob.run(job, { id: "a", payload: 1 })).pipe(
        Effect.provide(serving(job, program).pipe(Layer.provide(Layer.succeedContext(stored))))
      )
      assert.deepStrictEqual(result, [2, 2])
      for (const at of starts) assert.isAtLeast(at - begun, 8_000)
    }))
})

describe("definitions and devices", () => {
  it("refuses options that make no sense", () => {
    assert.throws(() => CudaJob.make("a", { ...options, size: 0 }), RangeError)
    assert.throws(() => CudaJob.make("a", { ...options, size: 1.5 }), RangeError)
    assert.throws(() => CudaJob.make("a", { ...options, heartbeat: 0 }), RangeError)
    assert.throws(() => CudaJob.make("a", { ...options, timeout: "1 second" }), RangeError)
    assert.throws(() => CudaJob.make("a", { ...options, timeout: "5 seconds", lease: "6 seconds" }), RangeError)
  })

  it.effect("dies for an id that is too long", () =>
    Effect.gen(function*() {
      const exit = yield* Effect.exit(CudaJob.run(job, { id: "x".repeat(151), payload: 1 }))
      assert.isTrue(Exit.isFailure(exit) && Cause.squash(exit.cause) instanceof RangeError)
    }).pipe(Effect.provide(runner().pipe(Layer.provide(storage)))))

  it.effect("lends each device to one at a time", () =>
    Effect.gen(function*() {
      const { devices, take } = JobDevices.make([4, 4, 2])
      assert.deepStrictEqual(devices, [4, 2])
      yield* Effect.scoped(Effect.gen(function*() {
        assert.deepStrictEqual([yield* take, yield* take, yield* take], [Option.some(4), Option.some(2), Option.none()])
      }))
      assert.deepStrictEqual(yield* Effect.scoped(take), Option.some(4))
    }))
})
