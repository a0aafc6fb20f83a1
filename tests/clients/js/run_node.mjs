// transformers.js in Node.

import * as transformers from "@huggingface/transformers";
import { reply } from "./reply.mjs";
import { serve } from "./serve.mjs";
import { questions } from "./transformers_js.mjs";

transformers.env.allowRemoteModels = false;
await serve((request) => reply(questions(transformers, { ...request, name: request.folder })));
