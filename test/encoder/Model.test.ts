/**
 * The model on a simulated device.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaBlas, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { configs } from "../../examples/encoder/Config.ts"
import * as Model from "../../examples/encoder/Model.ts"
import * as SafeTensors from "../../examples/encoder/SafeTensors.ts"
import { kernels } from "../../examples/encoder/SimulatedKernels.ts"
import { upload } from "../../examples/encoder/Upload.ts"
import * as Weights from "../../examples/encoder/Weights.ts"
import { checkedMachine } from "../support/checkedMachine.ts"
import { modelTests } from "./model.ts"
import { newPath } from "./support.ts"

const runtime = checkedMachine(SimulatedRuntime.layer({ kernels }))

describe("the model on a simulated device", () => {
  modelTests(runtime)

  it.live("records a size once", () =>
    Effect.gen(function*() {
      const path = yield* newPath
      yield* Weights.write(path, configs.tiny)
      const model = yield* Model.make(configs.tiny, yield* upload(yield* SafeTensors.open(path)))
      const session = yield* Model.session(model, { batch: 2, length: 32 })
      const exec = yield* session.graph({ batch: 2, length: 16 })
      assert.strictEqual(yield* session.graph({ batch: 2, length: 16 }), exec)
      assert.notStrictEqual(yield* session.graph({ batch: 1, length: 32 }), exec)
      // Three copies, the embeddings, seven steps per layer, and pooling.
      const work = exec.nodes.filter(({ kind }) => kind !== "mark")
      assert.strictEqual(work.length, 3 + 1 + 7 * configs.tiny.layers + 1)
    }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(CudaBlas.layer(), runtime))))
})
