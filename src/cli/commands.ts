/**
 * The commands of `npx effect-cuda`: `doctor` and `demo`.
 */
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { examine } from "./doctor/examine.ts"
import { toJson, toText } from "./doctor/report.ts"

/** A command that has said what is wrong, and ends with exit code 1. */
export class Unsuccessful extends Data.TaggedError("Unsuccessful") {}

const doctor = Command.make(
  "doctor",
  { json: Flag.Boolean("json").pipe(Flag.withDescription("Print the report as JSON"), Flag.withDefault(false)) },
  Effect.fnUntraced(function*({ json }) {
    const report = yield* examine
    yield* Console.log(json ? toJson(report) : toText(report))
    if (!report.ok) return yield* new Unsuccessful()
  })
).pipe(Command.withDescription(
  "Examine driver, devices and libraries, and test each GPU. The exit code is 1 if programs cannot use one"
))

const demo = Command.make(
  "demo",
  {
    file: Argument.String("file").pipe(
      Argument.withDescription("The file to stream through the GPU; by default the executable of Node.js"),
      Argument.optional
    )
  },
  Effect.fnUntraced(function*({ file }) {
    const { main } = yield* Effect.promise((): Promise<DemoModule> => import(demoUrl))
    yield* Effect.catchCause(main(Option.toArray(file)), () => new Unsuccessful())
  })
).pipe(Command.withDescription("Stream a file through a GPU and back, or through a simulated one"))

/** The examples are built after the package, and import it by its name. */
interface DemoModule {
  readonly main: (args: ReadonlyArray<string>) => Effect.Effect<void, unknown>
}

const demoUrl = new URL("../../dist-examples/demo/Main.js", import.meta.url).href

export const command = Command.make("effect-cuda").pipe(
  Command.withDescription("Orchestrate NVIDIA GPUs with Effect"),
  Command.withSubcommands([doctor, demo])
)
