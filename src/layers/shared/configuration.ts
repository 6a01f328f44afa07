/**
 * Variables of the environment, read through the program's `ConfigProvider`.
 */
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import { CudaError } from "../../CudaError.ts"

/**
 * Reads a variable of the environment, or of the program's `ConfigProvider`; `undefined` if unset, or if Deno does not let the program read
 * the environment. Does not use `Config`, which takes four times as long to import.
 */
export const readVariable = (operation: string, name: string): Effect.Effect<string | undefined, CudaError> =>
  Effect.catchDefect(
    readThrough(operation, name),
    (defect) => isRefused(defect) ? Effect.succeed(undefined) : Effect.die(defect)
  )

const isRefused = (defect: unknown): boolean => defect instanceof Error && defect.name === "NotCapable"

const readThrough = (operation: string, name: string): Effect.Effect<string | undefined, CudaError> =>
  Effect.flatMap(
    ConfigProvider.ConfigProvider,
    (provider) =>
      Effect.matchEffect(provider.load([name]), {
        onSuccess: (node) => Effect.succeed(node?.value),
        onFailure: (error) => {
          const causes = error.cause === undefined ? [error] : [error, error.cause]
          const value = `unreadable (${causes.map(messageOf).join(": ")})`
          const expected = "a variable that the ConfigProvider can read"
          return Effect.fail(
            new CudaError({ operation, reason: { _tag: "InvalidArgument", argument: name, value, expected } })
          )
        }
      })
  )

/** The path of a library: the option, otherwise the variable. An empty path counts as unset. */
export const readPath = (
  operation: string,
  option: string | undefined,
  variable: string
): Effect.Effect<string | undefined, CudaError> =>
  option === undefined
    ? Effect.map(readVariable(operation, variable), (path) => path || undefined)
    : Effect.succeed(option || undefined)

const messageOf = (error: unknown): string => error instanceof Error ? error.message : String(error)
